// What a front door meets: seven new operations of ten, two repeats of the user's last one, one page of an account.
// In: see common.js. Out: requests a second, p50, p99.
import * as load from './common.js';

export const options = load.options('mixed');
export const handleSummary = load.summary('mixed');

let last = null;

export default function () {
    const what = __ITER % 10;
    if (what === 9) {
        load.page(load.account());
    } else if (last && (what === 4 || what === 8)) {
        load.post(last.key, last.body);
    } else {
        last = { key: load.key(__ITER), body: load.posting() };
        load.post(last.key, last.body);
    }
}
