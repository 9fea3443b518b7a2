"""What a decoder layer reads and writes between its products: norms, rotary turns, activation, residual sums."""


def traffic_bytes(hidden: int, attention_widths: int, ffn: int, item: int) -> int:
    """Bytes that everything but products and attention reads and writes for one token in one layer.

    hidden: width of the residual stream. attention_widths: of queries, keys and values together. ffn: inner width of
    the MLP, of those experts that a token is sent to. item: bytes of an activation. Passes over tensors are counted as
    transformers' Llama makes them: two norms and two sums over the residual stream, rotary turns and KV writes over
    queries, keys and values, activation and gate over the MLP. ``Processor.activation_bytes_per_s`` is measured in
    these very bytes, so what matters is how they grow with the widths.
    """
    return item * (24 * hidden + 4 * attention_widths + 6 * ffn)
