"""Networks that turn images into features. Every number of a comparison of features depends on the network."""
