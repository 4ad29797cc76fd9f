"""Jobs: many photos answered into one file, by a server or here, which can be interrupted and go on at any time.

`photos` finds what is to be answered, `parallel` asks, `journal` keeps each answer at once, `table` says what a row is,
and `writers` make the output of all rows. Nothing here holds more than a few photos or rows in memory.
"""
