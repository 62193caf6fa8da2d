"""A publisher that knows nothing of Perkey: each message is confirmed before the next is sent.

In: the broker's URL as argument, messages as lines of JSON from stdin: exchange, routing_key, body, properties, times.
Out: nothing; it fails when a message is not taken.
"""

import json
import sys

import pika


def main():
    connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
    channel = connection.channel()
    channel.confirm_delivery()
    for line in sys.stdin:
        message = json.loads(line)
        properties = pika.BasicProperties(**message.get("properties", {}))
        for _ in range(message.get("times", 1)):
            channel.basic_publish(
                message["exchange"], message["routing_key"], message["body"].encode(), properties, mandatory=True
            )
    connection.close()


main()
