"""The glue that differs between algorithms, and nothing that does not: minibatches and the call of the loss."""
