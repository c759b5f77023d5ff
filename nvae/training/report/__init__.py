"""What a run did, from its files: as a text, and as the page report.html."""
