"""What is drawn: the sharing, data path and output of a running layer, and charts of measurements."""
