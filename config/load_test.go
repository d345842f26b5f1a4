package config

import (
	"os"
	"testing"
)

func TestDesignExampleLoads(t *testing.T) {
	data, err := os.ReadFile("testdata/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(data, "design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range c.NotInThisVersion() {
		t.Log(f)
	}
}
