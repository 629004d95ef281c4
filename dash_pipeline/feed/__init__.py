"""Publishing chain events to Kafka: from files, or from a node through ethereum-etl.

    files.py     which files hold events, whether they are right, in which order they are published
    publish.py   events -> topics and keys, at a rate, with counts that are true when something fails
    wait.py      until the platform has committed what was published
    exporter.py  the real `ethereum-etl stream` as a child process in an environment of its own
    node.py      what we ask a node ourselves
    follow.py    node -> Kafka: resuming, and the reorgs that the exporter does not notice
    replay.py    files, from checking to waiting
    live.py      a node, from installing the exporter to the report
    show.py      bars and tables

Does not belong here: what a message means (`events/`); here it is a line with a type and a block number.
"""
