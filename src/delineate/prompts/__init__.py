"""What a person asks for: words, the vocabulary, marks."""
