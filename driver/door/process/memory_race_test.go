//go:build race

package process

// memoryOfTest is what the process may use: the race detector takes more than any door.
const memoryOfTest = 1 << 46
