"""Graphs from a TU folder and a list of edges, the generated ones, and an error for each kind of
bad file."""

import numpy as np
import pytest

from cl_jax.data import graphs, motifs
from cl_jax.data.source import names_of

# Two triangles, of which the second has a tail, and an edge; nodes are not in order of graphs.
TU = {
    "A": "1, 2\n2, 1\n1, 3\n3, 1\n2, 3\n3, 2\n4, 5\n5, 4\n4, 6\n5, 6\n6, 7\n8, 9\n9, 9\n",
    "graph_indicator": "1\n1\n1\n2\n2\n2\n2\n3\n3\n",
    "graph_labels": "-1\n1\n-1\n",
    "node_labels": "5\n5\n7\n5\n5\n5\n9\n7\n7\n",
}


def _folder(tmp_path, **changes):
    folder = tmp_path / "TOY"
    folder.mkdir(exist_ok=True)
    for name, text in (TU | changes).items():
        if text is None:
            (folder / f"TOY_{name}.txt").unlink(missing_ok=True)
        else:
            (folder / f"TOY_{name}.txt").write_text(text)
    return str(folder)


def _rows(source):
    """Per graph its tags and its edges."""
    arrays = source.arrays
    return [
        (node[node > 0].tolist(), sorted(map(tuple, edge[edge[:, 0] >= 0].tolist())))
        for node, edge in zip(arrays["node"], arrays["edge"])
    ]


def test_a_tu_folder(tmp_path):
    splits = graphs.make(path=_folder(tmp_path))
    source = splits.train
    assert splits.test is source and source.size == 3
    assert _rows(source) == [
        ([1, 1, 2], [(0, 1), (0, 2), (1, 2)]),
        ([1, 1, 1, 3], [(0, 1), (0, 2), (1, 2), (2, 3)]),
        ([2, 2], [(0, 1)]),
    ]
    np.testing.assert_array_equal(source.arrays["label"], [0, 1, 0])
    assert source.classes == {}  # a class "-1" would be read as none from a table
    np.testing.assert_array_equal(source.arrays["nodes"], [3, 4, 2])
    np.testing.assert_array_equal(source.arrays["edges"], [3, 4, 1])
    assert source.sizes == {"node": 4, "nodes": 5, "edges": 5, "label": 2}
    assert source.arrays["node"].dtype == np.uint8 and source.arrays["edge"].dtype == np.int16


def test_nodes_in_any_order(tmp_path):
    """Nodes of a graph need not be neighbours in the files."""
    path = _folder(
        tmp_path,
        A="1, 3\n2, 4\n",
        graph_indicator="1\n2\n1\n2\n",
        graph_labels=None,
        node_labels="1\n2\n3\n4\n",
    )
    source = graphs.make(path=path).train
    assert _rows(source) == [([1, 3], [(0, 1)]), ([2, 4], [(0, 1)])]
    assert "label" not in source.arrays


def test_features(tmp_path):
    path = _folder(tmp_path)
    degree = graphs.make(path=path, features="degree", max_degree=2).train
    assert _rows(degree)[1][0] == [3, 3, 3, 2] and degree.sizes["node"] == 4
    assert _rows(graphs.make(path=path, features="constant").train)[1][0] == [1] * 4
    bare = _folder(tmp_path, node_labels=None)
    assert graphs.make(path=bare).train.sizes["node"] == 2
    with pytest.raises(ValueError, match=r"no tags.*features='degree'"):
        graphs.make(path=bare, features="tags")


def test_folds(tmp_path):
    lines = "".join(f"{2 * i + 1}, {2 * i + 2}\n" for i in range(20))
    indicator = "".join(f"{i + 1}\n" * 2 for i in range(20))
    path = _folder(
        tmp_path,
        A=lines,
        graph_indicator=indicator,
        graph_labels="0\n1\n" * 10,
        node_labels="".join(f"{i}\n" for i in range(40)),
    )
    found = []
    for fold in range(4):
        parts = graphs.make(path=path, folds=4, fold=fold)
        assert (parts.train.size, parts.test.size) == (15, 5)
        assert sorted(np.bincount(parts.test.arrays["label"])) == [2, 3]
        tags = [set(np.unique(part.arrays["node"])) for part in (parts.train, parts.test)]
        assert not tags[0] & tags[1]
        found.append(tags[1])
    assert sorted(tag for tags in found for tag in tags) == list(range(1, 41))


BAD = {
    "no indicator": (dict(graph_indicator=None), r"TOY_graph_indicator.txt is missing"),
    "no number": (dict(A="1, 2\n1, x\n"), r"TOY_A.txt: line 2 is '1, x'; expected 2 integers"),
    "half an edge": (dict(A="1, 2\n3\n"), r"TOY_A.txt: line 2 is '3'; expected 2 integers"),
    "three ends": (dict(A="1, 2, 3\n"), r"line 1 is '1, 2, 3'; expected 2 integers"),
    "a weight": (dict(A="1, 2\n1, 2.5\n"), r"line 2 is '1, 2.5'"),
    "no node 10": (dict(A="1, 10\n"), r"line 1 has \[1, 10\]; expected 1 or more and at most 9"),
    "from 0": (dict(A="1, 0\n"), r"line 1 has \[1, 0\].*numbered from 1"),
    "graph 0": (dict(graph_indicator="0\n" * 9), r"graphs are numbered from 1"),
    "across": (dict(A="1, 2\n3, 4\n"), r"line 2 joins node 3 of graph 1 with node 4 of graph 2"),
    "few labels": (dict(graph_labels="1\n1\n"), r"has 2 lines and there are 3 graphs"),
    "few tags": (dict(node_labels="1\n"), r"has 1 lines and there are 9 nodes"),
    "empty": (dict(A=""), r"TOY_A.txt is empty"),
    "no edges": (dict(A="1, 2\n4, 5\n"), r"1 of 3 graphs cannot be used: graph 3 has no edges"),
    "no nodes": (
        dict(graph_indicator="1\n1\n1\n3\n3\n3\n3\n4\n4\n", graph_labels="1\n" * 4),
        r"graph 2 has no nodes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_is_one_sentence(name, tmp_path):
    changes, text = BAD[name]
    with pytest.raises(ValueError, match=text):
        graphs.make(path=_folder(tmp_path, **changes))


def test_graphs_without_edges_are_left_out_or_kept_where_asked(tmp_path):
    path = _folder(tmp_path, A="1, 2\n4, 5\n")
    left = graphs.make(path=path, on_error="skip").train
    assert (left.size, left.skipped) == (2, 1)
    path = _folder(tmp_path, A="4, 5\n8, 9\n")
    left = graphs.make(path=path, on_error="skip").train
    assert names_of(left) == ["TOY/1", "TOY/2"]
    path = _folder(tmp_path, A="1, 2\n4, 5\n")
    kept = graphs.make(path=path, on_error="keep").train
    assert _rows(kept)[2] == ([2, 2], [])
    none = _folder(tmp_path, A="1, 1\n")
    with pytest.raises(ValueError, match="none of its 3 graphs"):
        graphs.make(path=none, on_error="skip")


def test_a_byte_order_mark_is_no_number(tmp_path):
    plain = graphs.make(path=_folder(tmp_path)).train
    marked = _folder(tmp_path, **{name: text and f"\ufeff{text}" for name, text in TU.items()})
    assert _rows(graphs.make(path=marked).train) == _rows(plain)


def test_a_binary_file(tmp_path):
    path = _folder(tmp_path)
    (tmp_path / "TOY" / "TOY_A.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-16; expected UTF-8"):
        graphs.make(path=path)


def test_too_many_nodes_and_tags():
    one = graphs.GraphSet(
        np.array([40_000]), np.array([1]), np.zeros(40_000, int), np.array([[0, 1]]), None
    )
    with pytest.raises(ValueError, match="graph 0 has 40000 nodes; expected at most 32768"):
        graphs.source_of("large", one)
    many = graphs.GraphSet(
        np.array([20_000] * 4), np.ones(4, int), np.arange(80_000), np.array([[0, 1]] * 4), None
    )
    with pytest.raises(ValueError, match="80000 different tags"):
        graphs.source_of("many", many)
    some = many._replace(tag=np.arange(80_000) % 300)
    assert graphs.source_of("some", some).arrays["node"].dtype == np.uint16


def test_settings(tmp_path):
    path = _folder(tmp_path)
    for section, text in (
        (dict(path=str(tmp_path / "none")), "does not exist"),
        (dict(path=str(tmp_path)), "holds 0 files that end in _A.txt"),
        (dict(path=path, features="degrees"), "auto, tags, degree, constant"),
        (dict(path=path, on_error="ignore"), "raise, skip, keep"),
        (dict(path=path, folds=3, fold=3), "fold below"),
        (dict(path=path, max_degree=0), "at least 1"),
        (dict(path=path, labels="x"), "belong to a file of edges"),
        (dict(path=path, folds=4), "too few"),
    ):
        with pytest.raises(ValueError, match=text):
            graphs.make(**section)


# A list of edges
# --------------------------------------


def _files(tmp_path, **text):
    for name, lines in text.items():
        (tmp_path / f"{name}.txt").write_text(lines)
    return {{"edges": "path"}.get(name, name): str(tmp_path / f"{name}.txt") for name in text}


EDGES = "# molecules\nwater o h1\nwater o h2\n\nhydrogen a b\nhydrogen b a\n"


def test_a_list_of_edges(tmp_path):
    given = _files(
        tmp_path,
        edges=EDGES,
        labels="water,1\nhydrogen,0\n",
        tags="water o O\nwater h1 H\nwater h2 H\nhydrogen a H\nhydrogen b H\n",
    )
    source = graphs.make(**given).train
    assert _rows(source) == [([1, 1], [(0, 1)]), ([2, 1, 1], [(0, 1), (0, 2)])]
    np.testing.assert_array_equal(source.arrays["label"], [0, 1])
    assert source.classes == {"label": ("0", "1")}
    bare = graphs.make(path=given["path"]).train
    assert bare.classes == {}
    assert bare.sizes == {"node": 2, "nodes": 4, "edges": 3}


def test_labels_as_words_are_the_names_of_the_classes(tmp_path):
    edges = "".join(f"g{i} a b\n" for i in range(4)) + "bare a a\n"
    labels = "g0,toxic\ng1,safe\ng2,safe\ng3,toxic\nbare,unknown\n"
    given = _files(tmp_path, edges=edges, labels=labels)
    for part in graphs.make(**given, folds=2, on_error="skip")[:2]:
        assert part.classes == {"label": ("safe", "toxic")} and part.sizes["label"] == 2
    kept = graphs.make(**given, on_error="keep").train
    assert kept.classes == {"label": ("safe", "toxic", "unknown")}


def test_other_edges_have_the_labels_and_tags_beside_them(tmp_path):
    """Those of the run's own graphs are of other nodes."""
    tags = "water o O\nwater h1 H\nwater h2 H\nhydrogen a H\nhydrogen b H\n"
    given = _files(tmp_path, edges=EDGES, labels="water,1\nhydrogen,0\n", tags=tags)
    learnt = graphs.make(**given).learnt
    place = tmp_path / "other"
    place.mkdir()
    other = _files(place, edges="oxygen a b\n", tags="oxygen a O\noxygen b O\n")
    source = graphs.make(**given | {"path": other["path"]}, learnt=learnt).train
    assert _rows(source) == [([2, 2], [(0, 1)])] and "label" not in source.arrays


@pytest.mark.parametrize(
    "edges, labels, tags",
    [
        ("graph,source,target", "graph,label", "graph,node,tag"),
        ("Graph_ID,a,b", "Graph_ID,y", "Graph_ID,n,t"),
        ("gid,from,to", "gid,class", "gid,node,tag"),
    ],
)
def test_a_header_is_no_graph(tmp_path, caplog, edges, labels, tags):
    """As pandas writes one; a graph of the name "graph" that has several lines is none."""
    rows = dict(edges="g,1,2\ng,2,3\nh,4,5\n", labels="g,1\nh,0\n")
    rows["tags"] = "g,1,7\ng,2,7\ng,3,8\nh,4,8\nh,5,7\n"
    bare = graphs.make(**_files(tmp_path, **rows)).train
    assert not caplog.records
    headed = {"edges": edges, "labels": labels, "tags": tags}
    given = _files(tmp_path, **{name: f"{headed[name]}\n{rows[name]}" for name in rows})
    found = graphs.make(**given).train
    assert found.sizes == bare.sizes
    for name, values in bare.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values)
    assert f"its first line, {edges.replace(',', ' ')!r}, is taken for a header" in caplog.text
    named = _files(tmp_path, edges="graph a b\ngraph b c\nother a b\n")
    assert graphs.make(**named).train.size == 2


@pytest.mark.parametrize(
    "text, message",
    [
        (dict(edges="graph source target\n"), "edges.txt is empty"),
        (dict(edges="1 2\n"), r"line 1 is '1 2'; expected 3 words, 'graph node node'"),
        (dict(edges="# nothing\n"), "edges.txt is empty"),
        (dict(edges=EDGES, labels="water 1\n"), "no label for graph hydrogen, and for 0 more"),
        (dict(edges=EDGES, labels="water 1\nwater 2\nhydrogen 1\n"), "water has two labels"),
        (dict(edges=EDGES, tags="water o O\n"), "no tag for node a of graph hydrogen"),
        (dict(edges=EDGES, labels="water 1\nhydrogen 0\nhelium 0\n"), "graph helium has no nodes"),
    ],
)
def test_each_bad_list_is_one_sentence(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        graphs.make(**_files(tmp_path, **text))


def test_a_file_that_is_not_there(tmp_path):
    given = _files(tmp_path, edges=EDGES)
    with pytest.raises(ValueError, match=r"labels.txt does not exist.*'graph label'"):
        graphs.make(**given, labels=str(tmp_path / "labels.txt"))


# Generated graphs
# --------------------------------------


def test_motifs_are_there_as_often_as_said():
    """Triangles with no further neighbour in common, counted by the trace of A^3, tell families
    with cliques and triangles from the others, but for noise edges."""
    splits = motifs.make(train_size=60, test_size=20)
    for source in splits[:2]:
        assert source.arrays["node"].shape[1] == splits.train.arrays["node"].shape[1]
        for node, edge, label in zip(*(source.arrays[f] for f in ("node", "edge", "label"))):
            n = int((node > 0).sum())
            real = edge[edge[:, 0] >= 0]
            assert real.max() < n and len(np.unique(real, axis=0)) == len(real)
            a = np.zeros((n, n))
            a[real[:, 0], real[:, 1]] = a[real[:, 1], real[:, 0]] = 1
            assert (np.linalg.matrix_power(a + np.eye(n), n) > 0).all(), "in one piece"
            triangles = np.trace(a @ a @ a) / 6
            family = motifs.FAMILIES[label]
            least = 2 * ("triangle" in family) + 8 * ("clique" in family)
            most = 5 * ("triangle" in family) + 20 * ("clique" in family) + 4
            assert least <= triangles <= most
    assert set(splits.train.arrays["label"]) == set(range(10))


def test_motifs_depend_on_the_seed_alone():
    a, b, c = (motifs.make(train_size=4, test_size=2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.train.arrays["edge"], b.train.arrays["edge"])
    assert (
        a.train.arrays["edge"].shape != c.train.arrays["edge"].shape
        or (a.train.arrays["edge"] != c.train.arrays["edge"]).any()
    )
    with pytest.raises(ValueError, match="test_size=0"):
        motifs.make(test_size=0)
