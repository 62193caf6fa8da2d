// For those who have k6 (AGPL-3.0, https://k6.io): k6 run -e BASE=http://127.0.0.1:8080 tests/load/new.js. scripts/load does the same
// with vegeta, and needs none of it.
// What the load scripts share: where they send to, how long, and the line that they leave behind.
// In: BASE (one or several, with commas), SECONDS, VUS, ACCOUNTS, KEYS, TOKEN, SUMMARY. Out: figures on the terminal, and in
// the file SUMMARY a line: name, requests a second, p50 and p99 in ms, share of failures.
import http from 'k6/http';
import { Counter, Rate, Trend } from 'k6/metrics';

const bases = (__ENV.BASE || 'http://127.0.0.1:8080').split(',');
const seconds = Number(__ENV.SECONDS || 15);
const vus = Number(__ENV.VUS || 64);
const accounts = Number(__ENV.ACCOUNTS || 1000);
const token = __ENV.TOKEN;

const done = new Counter('done');
const failed = new Rate('failed');
const latency = new Trend('latency', true);

export function options(name) {
    return {
        scenarios: { [name]: { executor: 'constant-vus', vus, duration: `${seconds}s`, gracefulStop: '10s' } },
        setupTimeout: '120s',
        batch: 64,
        batchPerHost: 64,
        discardResponseBodies: true,
        summaryTrendStats: ['med', 'p(99)', 'max'],
    };
}

// Requests of one user go to one gateway.
export function base() {
    return bases[(__VU || 0) % bases.length];
}

export function account() {
    return `load-${Math.floor(Math.random() * accounts)}`;
}

export function posting() {
    const amount = 1 + Math.floor(Math.random() * 10000);
    return JSON.stringify({ account: account(), amount, currency: 'USD', memo: 'from the load scripts' });
}

export function headers(key) {
    const headers = { 'Content-Type': 'application/json' };
    if (key) headers['Idempotency-Key'] = `"${key}"`;
    if (token) headers.Authorization = `Bearer ${token}`;
    return headers;
}

// Keys of one run are no other run's.
const run = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;

export function key(n) {
    return `${run}-${__VU}-${n}`;
}

export function post(key, body) {
    return counted(http.post(`${base()}/api/transactions`, body, { headers: headers(key) }), 201);
}

export function page(account) {
    const url = `${base()}/api/transactions?account=${account}`;
    return counted(http.get(url, { headers: headers(), tags: { name: 'page' } }), 200);
}

export function counted(response, status) {
    done.add(1);
    latency.add(response.timings.duration);
    failed.add(response.status !== status);
    return response;
}

export function fail() {
    failed.add(true);
}

export function summary(name) {
    return (data) => {
        const { done, latency, failed } = data.metrics;
        const rate = done ? done.values.count / seconds : 0;
        const [p50, p99] = latency ? [latency.values.med, latency.values['p(99)']] : [0, 0];
        const share = failed ? failed.values.rate : 1;
        const line = `${name} ${rate.toFixed(1)} ${p50.toFixed(2)} ${p99.toFixed(2)} ${share.toFixed(5)}\n`;
        const text = `${name}: ${rate.toFixed(0)} requests/s, p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms, ` +
            `${(100 * share).toFixed(2)} % failed\n`;
        return __ENV.SUMMARY ? { stdout: text, [__ENV.SUMMARY]: line } : { stdout: text };
    };
}
