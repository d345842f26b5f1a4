package demo

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kfake"
)

// startBroker starts the embedded broker: in this process, on loopback, with its data in dir. It is for trying out only:
// it replicates nothing, and `lethe run` refuses it.
func startBroker(dir string) (broker *kfake.Cluster, err error) {
	broker, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir))
	if err != nil {
		return nil, fmt.Errorf("starting the embedded broker: %w", err)
	}
	return broker, nil
}
