"""Parts of the models: quantiser, encoders and decoders, causal convolutions, attention."""
