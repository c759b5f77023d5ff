"""Pictures from files: listing, safe decoding, conversion to a model's size, and the report on them."""
