"""Data for training: files to rows, rows to tokens and labels, tokens packed into batches that resume exactly."""
