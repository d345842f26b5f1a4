package demo

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"
)

func TestDemo(t *testing.T) {
	s, err := Run(context.Background(), Options{For: 10 * time.Second, Customers: 2000, Out: os.Stderr, Keep: true})
	b, _ := json.MarshalIndent(s, "", " ")
	t.Log(string(b))
	if err != nil {
		t.Fatal(err)
	}
}
