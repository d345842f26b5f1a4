// Package simulation runs the real capture pipeline and the real sink workers over a broker in memory, in virtual time, under
// faults drawn from a seed, and compares what comes out with an oracle that only knows what the CRM did.
//
// There is nothing here but a test: `make simulate SEEDS=1000` runs more seeds than `make test` does, and
//
//	go test ./internal/simulation -run Simulate -seed 42
//
// repeats one. The seed fixes the workload and the plan of the faults. Which of two goroutines goes first is not fixed, so that
// a finding that hangs on it may take several repetitions (-count) of its seed to come back.
//
// What is real: capture.Pipeline, the rules, the codec, capture/kafka, capture/checkpoint, sinks.Worker, sinks/kafka, kafka-go.
// What is not: the source (a log of committed transactions, of which the CRM's own state is known), the broker (kfake over
// internal/testenv/memnet), and the replica's database (maps that commit or do not).
package simulation
