"""What a trained model is used for: to fill masks, to write text and to score it.

`predictor` computes the logits at chosen positions of texts. `fill_mask` fills masks with them, one by one or, by
`unmasking`, in steps: several masks that fit each other, and whole texts. `targets` scores given words only. `scoring`
tells how probable a text is. `probes` are the sentences that a run fills while it trains.
"""
