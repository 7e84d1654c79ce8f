"""Parts of several protocols: networks to features, tables of them, their cache, trees of files, results."""
