"""Tunes in ABC notation: read, normalise, judge the bars, turn into tokens and back, write, draw, play.

Independent of models, tensors and requests. Only `draw/` uses verovio.

    text  --read-->  RawTune  --parse (repeats)-->  Tune  --bar_repair (pickups)-->  Tune  --transpose-->  Tune on C
    Tune  <--tokens-->  tokens  --recover-->  Tune  --write-->  ABC  --draw-->  SVG        Tune  --play-->  MIDI
    text of a model  --generated-->  Tune, repaired and on the root asked for
    text  --check (read tolerantly, written_out)-->  findings, and the corrected tune
    Tune  --bars-->  wrong bars         tokens  --positions-->  classes        folder  --books (variants)-->  Corpus
"""
