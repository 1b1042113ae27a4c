"""What a representation is worth: kNN, linear probes, geometry, pictures. Import the one you need.

The names under which the protocols are logged; docs/evals.md says what each one fixes.
"""

KNN_TOP1 = "knn/top1"
KNN_TOP5 = "knn/top5"
KNN_K = "knn/k"
KNN_TEMPERATURE = "knn/temperature"
KNN_RAW_PIXELS = "knn/raw_pixels"
KNN_RANDOM_NETWORK = "knn/random_network"
LINEAR_CACHED_TOP1 = "linear/cached/top1"
LINEAR_CACHED_TOP5 = "linear/cached/top5"
LINEAR_AUGMENTED_TOP1 = "linear/augmented/top1"
LINEAR_AUGMENTED_TOP5 = "linear/augmented/top5"
GEOMETRY_ALIGNMENT = "geometry/alignment"
GEOMETRY_UNIFORMITY = "geometry/uniformity"
GEOMETRY_TOLERANCE = "geometry/tolerance"
GEOMETRY_TOLERANCE_SAME_CLASS = "geometry/tolerance_same_class"
GEOMETRY_EFFECTIVE_RANK = "geometry/effective_rank"
GEOMETRY_FEATURE_STD = "geometry/feature_std"
