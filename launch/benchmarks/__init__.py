"""What is measured against what people use today, one file a subject."""
