"""What a trained model is used for: to fill masks and to score texts.

`predictor` computes the logits at chosen positions of texts. `fill_mask` fills masks with them, one by one or, by
`unmasking`, so that several masks fit each other, and writes text; `targets` scores given words only. `scoring` tells how probable a
text is. `probes` are the sentences that a run fills while it trains.
"""
