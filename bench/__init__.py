"""Measure shardnet side by side with its peers: `python -m bench`, results in bench/RESULTS.md."""
