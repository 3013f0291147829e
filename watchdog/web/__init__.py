"""Port 9999: connections, requests, and the text of the metrics."""
