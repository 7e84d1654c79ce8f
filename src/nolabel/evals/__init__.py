"""Evaluation protocols: pure functions of tables of features, and what fills the tables from images.

A folder for each family: `images` (knn, linear, lowshot, finetune), `dense` (attention, segmentation, video), `objects`
(detection), `retrieval` (retrieval, copies); `shared` is what several of them use.
"""
