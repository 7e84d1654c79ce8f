"""What several protocols share: networks to features, tables of them, their cache, trees of files, results."""
