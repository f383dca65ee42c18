-- KEYS: the sorted set of nodes, the hash of infos. Answers what they hold, of one moment: memberships and scores, and
-- memberships and infos. A transaction would too, by four commands, two of which the user would need the right to.

return {redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), redis.call('HGETALL', KEYS[2])}
