"""What a trained model is used for.

`predictor` computes the logits at the masked positions of any texts. `fill_mask` fills
masks with it, one by one or, by `joint_fill`, so that several fit each other;
`targets` limits it to given words. `scoring` says how likely a text is. `probes` are
the sentences that a run fills while it trains.
"""
