"""Image sets, their partition over clients, and batches of them."""
