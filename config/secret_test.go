package config

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestSecretPrintsNowhere(t *testing.T) {
	holder := struct{ Password Secret }{NewSecret("hunter2")}
	asJSON, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	for form, got := range map[string]string{
		"%v": fmt.Sprintf("%v", holder), "%+v": fmt.Sprintf("%+v", holder), "%#v": fmt.Sprintf("%#v", holder.Password),
		"%s": fmt.Sprintf("<%s>", holder.Password), "%q": fmt.Sprintf("%q", holder.Password), "%x": fmt.Sprintf("%x", holder.Password),
		"JSON": strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(string(asJSON)), "YAML": string(asYAML),
	} {
		if want := "<secret>"; form != "%x" && !strings.Contains(got, want) || strings.Contains(got, "hunter2") || strings.Contains(got, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("%s prints %s", form, got)
		}
	}
	if holder.Password.Reveal() != "hunter2" || !holder.Password.IsSet() || (Secret{}).IsSet() {
		t.Error("the secret itself is lost")
	}
}
