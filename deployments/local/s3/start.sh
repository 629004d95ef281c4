#!/bin/sh
# SeaweedFS: master, volume, filer and S3 gateway in one process, in the foreground.
# WEED, DATA, HOST, S3_PORT and its neighbours come from supervisord; the key from the stack's env file.
export AWS_ACCESS_KEY_ID="$DASH_S3_ACCESS_KEY" AWS_SECRET_ACCESS_KEY="$DASH_S3_SECRET_KEY"
# Go returns memory late: without a limit the process grows to what the largest upload needed;
# with half of this one it spends half of an archive's time on collecting garbage.
export GOMEMLIMIT=512MiB GOGC=100
exec "$WEED" -logtostderr mini -dir="$DATA" -ip="$HOST" -ip.bind="$HOST" \
  -s3.port="$S3_PORT" -s3.port.grpc="$S3_GRPC_PORT" \
  -master.port="$MASTER_PORT" -master.port.grpc="$MASTER_GRPC_PORT" \
  -volume.port="$VOLUME_PORT" -volume.port.grpc="$VOLUME_GRPC_PORT" \
  -filer.port="$FILER_PORT" -filer.port.grpc="$FILER_GRPC_PORT" \
  -admin.port="$ADMIN_PORT" -admin.port.grpc="$ADMIN_GRPC_PORT" \
  -volume.preStopSeconds=0 -webdav=false -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0 \
  -master.telemetry=false -s3.autoCreateBucket=false -bucket="$DASH_S3_BUCKET"
