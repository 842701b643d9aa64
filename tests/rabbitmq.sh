#!/bin/sh
# A private RabbitMQ for tests: own port, own data folder, loopback only; never
# the system's service.
#
#   rabbitmq.sh run FOLDER PORT        runs it; this process becomes the broker
#   rabbitmq.sh ctl FOLDER PORT ARGS   rabbitmqctl against it
#   rabbitmq.sh eval FOLDER PORT       evaluates Erlang from stdin, a hundred times faster
#   rabbitmq.sh epmd-kill FOLDER PORT  stops the port mapper that it started
#
# PORT+1 is taken for Erlang's distribution, PORT+2 for its port mapper, unless
# EPMD_PORT names the one that the nodes of a cluster share.
# Login: rmuser / rmpassword, as in the documented default RABBITMQ_URL.
set -eu
action=$1 folder=$2 port=$3
shift 3
bin=/usr/lib/rabbitmq/bin
if [ ! -x "$bin/rabbitmq-server" ]; then
    echo "rabbitmq-server is not installed: apt-get install rabbitmq-server" >&2
    exit 69
fi
mkdir -p "$folder"
# A broker whose data goes away leaves a dump where it runs.
folder=$(cd "$folder" && pwd)
export HOME="$folder"
export RABBITMQ_NODENAME="chat3-gateway-$port@localhost"
export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
export RABBITMQ_NODE_PORT="$port"
export RABBITMQ_DIST_PORT=$((port + 1))
export ERL_EPMD_PORT="${EPMD_PORT:-$((port + 2))}"
export ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_MNESIA_BASE="$folder/data"
export RABBITMQ_LOG_BASE="$folder/log"
export RABBITMQ_CONFIG_FILE="$folder/rabbitmq.conf"
export RABBITMQ_ENABLED_PLUGINS_FILE="$folder/enabled_plugins"
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
case $action in
run)
    [ -e "$RABBITMQ_CONFIG_FILE" ] || cat >"$RABBITMQ_CONFIG_FILE" <<CONF
default_user = rmuser
default_pass = rmpassword
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
loopback_users = none
log.file.level = info
disk_free_limit.absolute = 50MB
CONF
    # What a test adds before the first start.
    [ ! -e "$folder/extra.conf" ] || cat "$folder/extra.conf" >>"$RABBITMQ_CONFIG_FILE"
    # Makes the start script replace itself by the broker, so that a signal to
    # this pid reaches it.
    export RUNNING_UNDER_SYSTEMD=1
    cd "$folder"
    exec "$bin/rabbitmq-server"
    ;;
ctl)
    "$bin/rabbitmqctl" --quiet "$@" || {
        status=$?
        # Also that of a broker that accepts logins, but does not call itself
        # started yet.
        [ "$status" = 64 ] || exit "$status"
        "$bin/rabbitmqctl" --quiet await_startup --timeout 60
        exec "$bin/rabbitmqctl" --quiet "$@"
    }
    ;;
eval) exec erl_call -sname "$RABBITMQ_NODENAME" -c "$(cat "$folder/.erlang.cookie")" -e ;;
epmd-kill) exec epmd -kill ;;
esac
