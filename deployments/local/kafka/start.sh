#!/bin/sh
# The broker, in the foreground. JAVA, JARS (folder), CONF (folder) and HEAP come from supervisord.
# The archive of loaded classes, written when the first process ends, halves what a start costs.
exec "$JAVA" -XX:+AutoCreateSharedArchive -XX:SharedArchiveFile="$JARS/classes.jsa" -Xlog:cds=off \
  -Xms"$HEAP" -Xmx"$HEAP" -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:+ExitOnOutOfMemoryError \
  -Djava.awt.headless=true -Dlog4j2.configurationFile="$CONF/log4j2.yaml" \
  -cp "$JARS/*" kafka.Kafka "$CONF/server.properties"
