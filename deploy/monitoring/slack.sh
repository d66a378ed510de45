#!/bin/sh
# Posts to Slack: fastmoco train … --notify "sh slack.sh". SLACK_WEBHOOK is the address of an incoming webhook.
# Python reads the status from standard input and quotes the text as JSON.
python3 -c '
import json, sys
told = json.load(sys.stdin)
words = [told["event"], "at step", str(told["step"]), "of", told["run"], "on", told["host"] + ":", told["message"] or "done"]
print(json.dumps({"text": " ".join(words)}))
' | curl --silent --show-error --fail --max-time 10 --header "Content-Type: application/json" --data @- "$SLACK_WEBHOOK"
