// What node-postgres sends, against the endpoint. Arguments: its address, the expected keys.
const { Client, Pool } = require("pg");

const [url, keys] = process.argv.slice(2);
const expected = keys.split(",").join();
const text = "[0.3,0.1,0.7,0.5]";
const nearest = "SELECT id, embedding FROM docs ORDER BY embedding <-> $1 LIMIT 5";

function same(what, found, wanted = expected) {
  if (found.join() !== wanted) throw new Error(`${what}: ${found}, not ${wanted}`);
  console.log("ok", what);
}

async function main() {
  const client = new Client({ connectionString: url });
  await client.connect();
  const rows = (await client.query(nearest, [text])).rows;
  same("node-postgres: text", rows.map((row) => row.id));
  if (rows.some((row) => row.embedding.length !== 4)) throw new Error("a vector is an array of numbers");
  for (let round = 0; round < 3; round++) {
    const named = { name: "nearest", text: nearest.replace("$1", "$1::real[]"), values: [[0.3, 0.1, 0.7, 0.5]] };
    same("node-postgres: prepared, array", (await client.query(named)).rows.map((row) => row.id));
  }
  const any = await client.query("SELECT id FROM docs WHERE id = ANY($1) ORDER BY id", [[9, 3, 5]]);
  same("node-postgres: = ANY", any.rows.map((row) => row.id), "3,5,9");
  await client.query("BEGIN");
  await client.query("SELECT nothing FROM docs").then(
    () => { throw new Error("an unknown column was taken"); },
    (error) => { if (error.code !== "42703" || !error.hint) throw error; },
  );
  await client.query("ROLLBACK");
  await client.end();
  const pool = new Pool({ connectionString: url, max: 4 });
  const found = await Promise.all([1, 2, 3, 4, 5, 6].map((id) => pool.query("SELECT id FROM docs WHERE id = $1", [id])));
  same("node-postgres: pool", found.map((one) => one.rows[0].id), "1,2,3,4,5,6");
  await pool.end();
}

main().catch((error) => { console.error(error); process.exit(1); });
