-- KEYS: the sorted set of nodes, the hash of infos. Answers what they hold, of one moment: memberships and scores, and
-- memberships and infos. A transaction would too, and takes a client half as long again to ask for, four times a second.

return {redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), redis.call('HGETALL', KEYS[2])}
