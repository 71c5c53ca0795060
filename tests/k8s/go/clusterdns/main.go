// A small cluster DNS, as no Debian suite has CoreDNS. It answers what the Kubernetes DNS
// specification asks for (A, AAAA, SRV, CNAME, PTR of services, endpoints and pods) from a watch on
// services and endpoints; everything outside the cluster domain gets NXDOMAIN.
package main

import (
	"flag"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

var (
	zone  = flag.String("zone", "cluster.local.", "cluster domain")
	addr  = flag.String("addr", ":53", "UDP and TCP listen address")
	hc    = flag.String("health", ":8080", "health listen address")
	ttl   = flag.Uint("ttl", 5, "TTL")
	svcs  listers.ServiceLister
	eps   listers.EndpointsLister
	ready int32
)

type ans struct {
	found bool // the name exists, whatever its types
	rrs   []dns.RR
	extra []dns.RR
}

func hdr(n string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: n, Rrtype: t, Class: dns.ClassINET, Ttl: uint32(*ttl)}
}

func ipRR(n string, ip string, qt uint16) dns.RR {
	p := net.ParseIP(ip)
	if p == nil {
		return nil
	}
	if p.To4() != nil {
		if qt == dns.TypeA || qt == dns.TypeANY {
			return &dns.A{Hdr: hdr(n, dns.TypeA), A: p.To4()}
		}
		return nil
	}
	if qt == dns.TypeAAAA || qt == dns.TypeANY {
		return &dns.AAAA{Hdr: hdr(n, dns.TypeAAAA), AAAA: p}
	}
	return nil
}

func host(a v1.EndpointAddress) string {
	if a.Hostname != "" {
		return a.Hostname
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.IP)
}

func addrs(ns, name string, pub bool, f func(v1.EndpointSubset, v1.EndpointAddress)) {
	e, err := eps.Endpoints(ns).Get(name)
	if err != nil {
		return
	}
	for _, s := range e.Subsets {
		for _, a := range s.Addresses {
			f(s, a)
		}
		if pub {
			for _, a := range s.NotReadyAddresses {
				f(s, a)
			}
		}
	}
}

func (a *ans) add(r dns.RR) {
	if r == nil {
		return
	}
	for _, o := range a.rrs {
		if o.String() == r.String() {
			return
		}
	}
	a.rrs = append(a.rrs, r)
}

func lookup(q dns.Question) (a ans) {
	name := strings.ToLower(q.Name)
	rel := strings.TrimSuffix(strings.TrimSuffix(name, *zone), ".")
	var l []string
	if rel != "" {
		l = strings.Split(rel, ".")
	}
	n := len(l)
	if n == 0 {
		a.found = true
		return
	}
	kind := l[n-1]
	if n < 3 { // svc, pod, NAMESPACE.svc: empty non-terminals
		a.found = kind == "svc" || kind == "pod"
		return
	}
	ns := l[n-2]
	if kind == "pod" {
		ip := strings.Replace(l[n-3], "-", ".", 3)
		if n == 3 && net.ParseIP(ip) != nil {
			a.found = true
			if r := ipRR(q.Name, ip, q.Qtype); r != nil {
				a.rrs = append(a.rrs, r)
			}
		}
		return
	}
	if kind != "svc" {
		return
	}
	s, err := svcs.Services(ns).Get(l[n-3])
	if err != nil {
		return
	}
	base := l[n-3] + "." + ns + ".svc." + *zone
	headless := s.Spec.ClusterIP == v1.ClusterIPNone || s.Spec.ClusterIP == ""
	switch {
	case s.Spec.Type == v1.ServiceTypeExternalName:
		if n == 3 {
			a.found = true
			a.rrs = append(a.rrs, &dns.CNAME{Hdr: hdr(q.Name, dns.TypeCNAME), Target: dns.Fqdn(s.Spec.ExternalName)})
		}
	case n == 3:
		if !headless {
			a.found = true
			a.add(ipRR(q.Name, s.Spec.ClusterIP, q.Qtype))
		} else {
			addrs(ns, s.Name, s.Spec.PublishNotReadyAddresses, func(_ v1.EndpointSubset, e v1.EndpointAddress) {
				a.found = true
				a.add(ipRR(q.Name, e.IP, q.Qtype))
			})
		}
		if q.Qtype == dns.TypeSRV {
			srv(&a, q, s, base, "", "", headless)
		}
	case n == 4 && headless:
		addrs(ns, s.Name, s.Spec.PublishNotReadyAddresses, func(_ v1.EndpointSubset, e v1.EndpointAddress) {
			if host(e) == l[0] {
				a.found = true
				a.add(ipRR(q.Name, e.IP, q.Qtype))
			}
		})
	case n == 5 && strings.HasPrefix(l[0], "_") && strings.HasPrefix(l[1], "_"):
		srv(&a, q, s, base, l[0][1:], l[1][1:], headless)
	}
	return
}

func srv(a *ans, q dns.Question, s *v1.Service, base, port, proto string, headless bool) {
	put := func(target string, p int32, ip string) {
		a.found = true
		if q.Qtype != dns.TypeSRV && q.Qtype != dns.TypeANY {
			return
		}
		a.add(&dns.SRV{Hdr: hdr(q.Name, dns.TypeSRV), Weight: 100, Port: uint16(p), Target: target})
		if r := ipRR(target, ip, dns.TypeANY); r != nil {
			a.extra = append(a.extra, r)
		}
	}
	if !headless {
		for _, p := range s.Spec.Ports {
			if port == "" || (strings.EqualFold(p.Name, port) && strings.EqualFold(string(p.Protocol), proto)) {
				put(base, p.Port, s.Spec.ClusterIP)
			}
		}
		return
	}
	addrs(s.Namespace, s.Name, s.Spec.PublishNotReadyAddresses, func(u v1.EndpointSubset, e v1.EndpointAddress) {
		for _, p := range u.Ports {
			if port == "" || (strings.EqualFold(p.Name, port) && strings.EqualFold(string(p.Protocol), proto)) {
				put(host(e)+"."+base, p.Port, e.IP)
			}
		}
	})
}

func ptr(q dns.Question) (a ans) {
	l := strings.Split(strings.TrimSuffix(strings.ToLower(q.Name), ".in-addr.arpa."), ".")
	if len(l) != 4 {
		return
	}
	ip := l[3] + "." + l[2] + "." + l[1] + "." + l[0]
	put := func(t string) {
		a.found = true
		a.add(&dns.PTR{Hdr: hdr(q.Name, dns.TypePTR), Ptr: t})
	}
	all, _ := svcs.List(labels.Everything())
	for _, s := range all {
		base := s.Name + "." + s.Namespace + ".svc." + *zone
		if s.Spec.ClusterIP == ip {
			put(base)
		} else if s.Spec.ClusterIP == v1.ClusterIPNone {
			addrs(s.Namespace, s.Name, s.Spec.PublishNotReadyAddresses, func(_ v1.EndpointSubset, e v1.EndpointAddress) {
				if e.IP == ip {
					put(host(e) + "." + base)
				}
			})
		}
	}
	return
}

func serve(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(r)
	m.RecursionAvailable = true
	if len(r.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		w.WriteMsg(m)
		return
	}
	q := r.Question[0]
	var a ans
	low := strings.ToLower(q.Name)
	switch {
	case low == *zone || strings.HasSuffix(low, "."+*zone):
		m.Authoritative = true
		a = lookup(q)
	case strings.HasSuffix(low, ".in-addr.arpa."):
		m.Authoritative = true
		a = ptr(q)
	}
	m.Answer, m.Extra = a.rrs, a.extra
	if !a.found {
		m.Rcode = dns.RcodeNameError
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{&dns.SOA{Hdr: hdr(*zone, dns.TypeSOA), Ns: "ns.dns." + *zone, Mbox: "hostmaster." + *zone,
			Serial: uint32(time.Now().Unix()), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: uint32(*ttl)}}
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		max := 512
		if o := r.IsEdns0(); o != nil && int(o.UDPSize()) > max {
			max = int(o.UDPSize())
			m.SetEdns0(uint16(max), false)
		}
		m.Compress = true
		if m.Len() > max {
			m.Answer, m.Extra, m.Truncated = nil, nil, true
		}
	}
	w.WriteMsg(m)
}

func main() {
	flag.Parse()
	go func() {
		http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("OK")) })
		http.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
			if atomic.LoadInt32(&ready) == 0 {
				w.WriteHeader(503)
			}
		})
		log.Fatal(http.ListenAndServe(*hc, nil))
	}()
	cfg, err := rest.InClusterConfig()
	if err != nil {
		log.Fatal(err)
	}
	f := informers.NewSharedInformerFactory(kubernetes.NewForConfigOrDie(cfg), 0)
	svcs, eps = f.Core().V1().Services().Lister(), f.Core().V1().Endpoints().Lister()
	si, ei := f.Core().V1().Services().Informer(), f.Core().V1().Endpoints().Informer()
	stop := make(chan struct{})
	f.Start(stop)
	cache.WaitForCacheSync(stop, si.HasSynced, ei.HasSynced)
	dns.HandleFunc(".", serve)
	for _, n := range []string{"udp", "tcp"} {
		s := &dns.Server{Addr: *addr, Net: n}
		go func() { log.Fatal(s.ListenAndServe()) }()
	}
	atomic.StoreInt32(&ready, 1)
	log.Print("cluster DNS is up")
	select {}
}
