package mysql

// firstEpoch is the epoch that a source begins with.
const firstEpoch = 1
