"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const atlas = data.atlas;

// One example: its picture from the atlas at `scale` times its size, or its text.
function tile(row, scale) {
  const box = document.createElement("span");
  box.dataset.row = row;
  box.title = data.names[row];
  if (!atlas) {
    box.className = "tile text";
    box.textContent = data.names[row];
    return box;
  }
  const cell = atlas.cell * scale, per = atlas.columns * atlas.columns;
  const place = row % per, x = place % atlas.columns, y = Math.floor(place / atlas.columns);
  box.className = "tile";
  box.style.width = box.style.height = cell + "px";
  box.style.backgroundImage = `url(${atlas.files[Math.floor(row / per)]})`;
  box.style.backgroundSize = `${atlas.columns * cell}px auto`;
  box.style.backgroundPosition = `-${x * cell}px -${y * cell}px`;
  return box;
}

function caption(row) {
  const words = Object.entries(data.labels).map(([field, of]) =>
    of.values[row] < 0 ? "" : `${field} ${of.names[of.values[row]]}`);
  return [atlas ? data.names[row] : "", ...words].filter(Boolean).join(" · ");
}

function element(kind, cls, text) {
  const made = document.createElement(kind);
  made.className = cls;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Static places in the page that name rows: <span data-tile="12">.
for (const place of document.querySelectorAll("[data-tile]")) {
  place.replaceWith(tile(Number(place.dataset.tile), Number(place.dataset.scale || 1)));
}

// Charts that Python made.
// Nothing of the page is sent anywhere.
const config = {displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: ""};
for (const [id, figure] of Object.entries(data.figures)) {
  // Their bar of tools would lie over the titles; dragging and double clicks zoom all the same.
  Plotly.newPlot(id, figure.data, figure.layout, {...config, displayModeBar: false});
}

// The map.
const map = document.getElementById("map");
if (map) {
  const by = document.getElementById("colour"), where = document.getElementById("layout");
  const tip = document.getElementById("tip"), panel = document.getElementById("near");
  const colours = data.colours;

  // At most so many points are drawn at once, those in view of a fixed random order: without a
  // graphics card each costs microseconds a frame. Zooming in shows all that are there.
  const most = 5000, count = data.names.length, order = [...data.names.keys()];
  for (let i = count - 1, seed = 1; i > 0; i--) {
    seed = (seed * 48271) % 2147483647;
    const j = seed % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }

  // The ranges of x and y that show a whole layout.
  function whole(places) {
    return [0, 1].map(i => {
      let low = Infinity, high = -Infinity;
      for (const place of places) {
        low = Math.min(low, place[i]);
        high = Math.max(high, place[i]);
      }
      const edge = (high - low) / 40 || 1;
      return [low - edge, high + edge];
    });
  }

  function inView(places, ranges) {
    if (count <= most) return data.names.keys();
    const sides = ranges.map(([a, b]) => [a - (b - a) / 2, b + (b - a) / 2]);  // a drag's reach, too
    const seen = [];
    for (const row of order) {
      if (sides.every(([low, high], i) => places[row][i] >= low && places[row][i] <= high)) {
        if (seen.push(row) === most) break;
      }
    }
    return seen;
  }

  function traces(ranges) {
    const places = data.layouts[where.value], of = data.colourings[by.value];
    const rows = {};
    for (const value of of.values) rows[value] ||= [];
    for (const row of inView(places, ranges)) rows[of.values[row]].push(row);
    return Object.keys(rows).map(Number).sort((a, b) => a - b).map(value => ({
      type: "scattergl", mode: "markers", hoverinfo: "none", customdata: rows[value],
      x: rows[value].map(row => places[row][0]), y: rows[value].map(row => places[row][1]),
      name: value < 0 ? "none" : of.names[value],
      marker: {size: data.names.length > 5000 ? 4 : 6, opacity: 0.75,
        color: value < 0 ? "#c4c9d2" : colours[value % colours.length]},
    }));
  }

  let shown = null, waiting = 0;

  // Draws what the axes show, or the whole layout. The ranges are given each time: without them
  // react would return to those of its first call. At the first call the axes do not exist yet.
  function draw(all) {
    const axes = !all && shown === where.value && map._fullLayout;
    const ranges = axes ? [[...axes.xaxis.range], [...axes.yaxis.range]]
      : whole(data.layouts[where.value]);
    shown = where.value;
    const axis = {visible: false, autorange: false};
    const layout = {margin: {l: 10, r: 10, t: 30, b: 10}, dragmode: "pan", hovermode: "closest",
      xaxis: {...axis, range: ranges[0]}, yaxis: {...axis, range: ranges[1], scaleanchor: "x"},
      legend: {itemsizing: "constant"}, showlegend: true};
    return Plotly.react(map, traces(ranges), layout, {...config, scrollZoom: true,
      doubleClick: false, modeBarButtonsToRemove:
      ["autoScale2d", "resetScale2d", "select2d", "lasso2d"],
      modeBarButtonsToAdd: [{name: "whole", title: "Show all", icon: Plotly.Icons.home,
        click: () => draw(true)}]});
  }

  function show(row) {
    panel.replaceChildren(element("h3", "", "chosen"), tile(row, 2),
      element("div", "caption", caption(row)), element("h3", "", "nearest"));
    data.near[row].forEach((other, i) => {
      const pair = element("div", "pair");
      const seen = tile(other, atlas ? 1.3 : 1);
      seen.style.cursor = "pointer";
      seen.onclick = () => show(other);
      pair.append(seen, element("div", "caption", `${data.similarity[row][i]} · ${caption(other)}`));
      panel.append(pair);
    });
  }

  draw().then(() => {
    map.on("plotly_hover", event => {
      const row = event.points[0].customdata;
      tip.replaceChildren(tile(row, 2), element("div", "caption", caption(row)));
      tip.hidden = false;
      const {clientX: x, clientY: y} = event.event;
      tip.style.left = Math.min(x + 16, innerWidth - 240) + "px";
      tip.style.top = Math.min(y + 16, innerHeight - 180) + "px";
    });
    map.on("plotly_unhover", () => { tip.hidden = true; });
    map.on("plotly_click", event => show(event.points[0].customdata));
    map.on("plotly_doubleclick", () => draw(true));
    map.on("plotly_relayout", () => {
      if (count <= most) return;
      clearTimeout(waiting);
      waiting = setTimeout(() => draw(), 150);
    });
    map.dataset.ready = "yes";
  });
  by.onchange = where.onchange = () => draw();
}
