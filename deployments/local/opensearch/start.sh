#!/bin/sh
# The node, in the foreground. JAVA, DIST (folder), CONF (folder), HOME_DIR and HEAP come from supervisord.
# The archive of loaded classes, written when the first process ends, halves what a start costs. It is why the
# vector module, which only searches by vectors need, is not added: the JVM keeps no archive with it.
# repository-s3 needs opensearch.path.conf, or it fails with a NullPointerException.
exec "$JAVA" -XX:+AutoCreateSharedArchive -XX:SharedArchiveFile="$DIST/classes.jsa" -Xlog:cds=off \
  -Xms"$HEAP" -Xmx"$HEAP" -XX:+UseG1GC -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
  -Dfile.encoding=UTF-8 -Djna.nosys=true -Dlog4j2.disable.jmx=true \
  -Dio.netty.noUnsafe=true -Dio.netty.noKeySetOptimization=true -Dio.netty.recycler.maxCapacityPerThread=0 \
  -Dopensearch.path.home="$HOME_DIR" -Dopensearch.path.conf="$CONF" \
  -Dopensearch.set.netty.runtime.available.processors=false -Dopensearch.networkaddress.cache.ttl=60 \
  --enable-native-access=ALL-UNNAMED -cp "$DIST/jars/*" DashNode "$HOME_DIR" "$CONF"
