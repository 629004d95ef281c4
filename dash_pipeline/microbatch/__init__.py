"""The warm loop: consume -> decode -> commit, with offsets and rows in one transaction; which lane owns which
partitions."""
