"""Evaluation protocols: pure functions of tables of features, and the way from images to these tables.

A folder per family: `classification` (knn, linear, lowshot, finetune), `dense` (attention, segmentation, video),
`detection`, `retrieval` (retrieval, copies); `shared` holds the parts of several families. Read `protocol.py` first: a
protocol measures, `run` does the rest.
"""
