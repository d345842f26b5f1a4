package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	capturekafka "lethe/capture/kafka"
	"lethe/internal/testenv"
)

// hangs is what a server that is stopped where it stands looks like: connections stay open and nothing answers.
type hangs interface {
	Pause() error
	Resume() error
}

// A server hangs without closing its connections. The roles that need it must say so although no error comes to them, the
// others go on, and when it wakes up everything follows.
func TestServersThatHang(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		open   func(t *testing.T, o *options) hangs
		silent []string
		well   []string
	}{
		{"CRM", func(t *testing.T, o *options) hangs {
			o.crm = testenv.NewPostgres(t, serverOptions(15))
			return o.crm
		}, []string{roleCapture}, []string{roleMarketing, roleReporting}},
		{"replica", func(t *testing.T, o *options) hangs {
			o.marketing = testenv.NewPostgres(t, serverOptions(18))
			return o.marketing
		}, []string{roleMarketing}, []string{roleCapture, roleReporting}},
		{"Kafka", func(t *testing.T, o *options) hangs {
			o.kafka = testenv.NewKafka(t, testenv.KafkaOptions{})
			return o.kafka
		}, []string{roleCapture, roleMarketing, roleReporting}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := options{}
			server := c.open(t, &o)
			w := newWorld(t, o)
			lethe := w.start()
			lethe.waitReady(soon)
			p := w.player()
			p.steps(40)
			if err := server.Pause(); err != nil {
				t.Fatal(err)
			}
			if c.name != "CRM" {
				for id := int64(20); id < 24; id++ {
					p.erase(id)
				}
			}
			for _, role := range c.silent {
				lethe.waitRole(within, role, false)
			}
			for _, role := range c.well {
				lethe.waitRole(soon, role, true)
			}
			if err := server.Resume(); err != nil {
				t.Fatal(err)
			}
			lethe.waitReady(within)
			p.steps(20)
			p.finish()
			w.followed(within)
		})
	}
}

// The events topic is deleted and made anew: offsets mean something else now. The sinks stand in a gap, loudly, and never
// start from wherever the new log begins.
func TestEventsTopicMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.erase(3)
	p.finish()
	w.followed(within)
	lethe.terminate(10 * time.Second)
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	admin := kafka.Client{Addr: kafka.TCP(w.kafka.Brokers()...), Transport: transport}
	if _, err := admin.DeleteTopics(w.ctx, &kafka.DeleteTopicsRequest{Topics: []string{w.name + ".events"}}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, soon, func() error {
		_, err := (&capturekafka.Topics{Conn: w.conn}).Setup(w.ctx)
		return err
	})
	lethe = w.start()
	w.exec(&w.crm, "update consent set status = 'N' where customer_id = 5")
	lethe.waitCause(roleReporting, "log_shorter", "topic_recreated")
	status := lethe.waitCause(roleMarketing, "log_shorter", "topic_recreated")
	if !strings.Contains(status.Cause, "lost to this replica") {
		t.Errorf("the cause says nothing of what to do: %q", status.Cause)
	}
	if got := w.query(&w.marketing, "select newsletter_optin from contact where crm_id = 5"); got != "true" {
		t.Error("a sink jumped to the beginning of another log")
	}
}

// A mapping grows: the sink waits for `lethe setup`, and then erases what it had not known of the people erased before.
func TestMappingGrows(t *testing.T) {
	t.Parallel()
	const known = "        fact_survey: {by: customer_sk, set: {answer: null}}\n"
	o := options{yaml: func(yaml string) string { return strings.Replace(yaml, known, "", 1) }}
	w := newWorld(t, o)
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.erase(3)
	testenv.Eventually(t, soon, w.unproven)
	const answers = "select count(answer) from fact_survey s join dim_customer c using (customer_sk) where customer_nk = 3"
	if got := w.query(&w.reporting, answers); got != "1" {
		t.Fatalf("%s answers before the mapping knows of them", got)
	}
	lethe.terminate(10 * time.Second)
	o.yaml, w.again = nil, true
	w.writeConfig(o)
	lethe = w.start()
	lethe.waitCause(roleReporting, "mapping_digest")
	lethe.waitRole(soon, roleMarketing, true)
	w.setupReplica(o, "reporting")
	lethe.terminate(10 * time.Second) // a sink that waits for setup looks again in its own time
	lethe = w.start()
	w.want(&w.reporting, soon, answers, "0")
	p.finish()
	w.followed(within)
	lethe.waitReady(soon)
}
