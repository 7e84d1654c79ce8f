"""The protocols. Adding one: its file, a line here, and one in `nolabel/recipes.py` for the list."""

from nolabel.evals import knn
from nolabel.evals.protocol import Protocol

PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol("k-NN accuracy, %", knn.KNNConfig, knn.evaluate_knn, knn.columns),
}
