"""FlexAttention: masks that skip blocks, any model patched to it, and runs of whole grids.

- `masks`: causal, sliding window, sink and window, prefix and dilated masks
- `masked_attention`: `MaskedFlex`, the harness' attention under such a mask
- `patching`: `enable_flex_attention_dense_causal`, for a loaded model outside of the harness
- `benchmark_cmd`: a grid of settings, each in a process of its own: a face of `longctx.sweep`
"""
