"""Tunes in ABC notation: read, normalise, judge the bars, turn into tokens and back, write, draw, play.

Knows nothing of models, tensors or requests. `draw/` alone knows verovio.

    text  --read-->  RawTune  --parse (repeats)-->  Tune  --bar_repair (pickups)-->  Tune  --transpose-->  Tune on C
    Tune  <--tokens-->  tokens  --recover-->  Tune  --write-->  ABC  --draw-->  SVG        Tune  --play-->  MIDI
    text  --check (read tolerantly, written_out)-->  findings, and the tune written right
    Tune  --bars-->  wrong bars         tokens  --positions-->  classes        folder  --books (variants)-->  Corpus
"""
