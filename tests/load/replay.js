// Repeats: KEYS operations are made before the clock runs, then sent again and again with the same keys. A server without
// idempotency does each of them anew.
// In: see common.js. Out: requests a second, p50, p99.
import http from 'k6/http';
import * as load from './common.js';

export const options = load.options('replay');
export const handleSummary = load.summary('replay');

const count = Number(__ENV.KEYS || 1000);

export function setup() {
    const made = Array.from({ length: count }, (_, n) => ({ key: load.key(n), body: load.posting() }));
    for (let at = 0; at < count; at += 64) {
        const part = made.slice(at, at + 64);
        const answers = http.batch(part.map(({ key, body }) => ({
            method: 'POST',
            url: `${load.base()}/api/transactions`,
            body,
            params: { headers: load.headers(key) },
        })));
        const wrong = answers.find((answer) => answer.status !== 201);
        if (wrong) throw new Error(`an operation was not made: status ${wrong.status}`);
    }
    return made;
}

export default function (made) {
    const { key, body } = made[Math.floor(Math.random() * made.length)];
    const answer = load.post(key, body);
    // Without idempotency there is no such header, and nothing to be wrong.
    if (__ENV.IDEMPOTENT && answer.headers['Idempotent-Replayed'] !== 'true') load.fail();
}
