# Requests for vegeta (format json), one a line: what scripts/load sends. Run by jq -cn.
# In: $script (new, replay or mixed), $bases with commas, $run (keys of one run are no other run's), $count, $accounts,
# $token (or nothing). Out: targets; of `replay` each is sent again and again.
def digits($n): tostring | "0000000000"[length:] + .;
# Numbers that look like chance and are the same in each run.
def mixed($n; $below): ($n * 2654435761 + 12345) % 4294967296 % $below;
($bases | split(",")) as $to
| ({ "Content-Type": ["application/json"] }
    + if $token == "" then {} else { Authorization: ["Bearer \($token)"] } end) as $headers
| def post($n):
    {
        method: "POST",
        url: "\($to[$n % ($to | length)])/api/transactions",
        header: ($headers + { "Idempotency-Key": ["\"\($run)-\($n | digits($n))\""] }),
        body: ({ account: "load-\(mixed($n; $accounts))", amount: (1 + mixed($n; 10000)), currency: "USD",
            memo: "from the load scripts" } | tojson | @base64)
    };
  def page($n):
    {
        method: "GET",
        url: "\($to[$n % ($to | length)])/api/transactions?account=load-\(mixed($n; $accounts))",
        header: $headers
    };
  range($count) as $n
| if $script != "mixed" then post($n)
  elif $n % 10 == 9 then page($n)
  # Repeats of a request that has long been answered: 640 before it, which was a new one.
  elif $n >= 1000 and ($n % 10 == 4 or $n % 10 == 8) then post($n - 641)
  else post($n)
  end
