"""trialign: reproducible studies of how language models are aligned."""
