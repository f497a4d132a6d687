"""Tunes in ABC notation: read, normalise, judge the bars, turn into tokens and back, write, draw, play.

Knows nothing of models, tensors or requests. `draw/` alone knows verovio.

    text  --read-->  RawTune  --normal (repeats)-->  Tune  --repair (pickups)-->  Tune  --transpose-->  Tune on C
    Tune  <--tokens-->  tokens  --mend-->  Tune  --write-->  ABC  --draw-->  SVG        Tune  --play-->  MIDI
    Tune  --bars-->  wrong bars         tokens  --positions-->  classes        folder  --books (variants)-->  Corpus
"""
