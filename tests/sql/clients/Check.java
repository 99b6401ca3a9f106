// What the JDBC driver sends, against the endpoint. Arguments: its address, the keys of the five nearest.

import java.net.URI;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;

public class Check {
    static final String NEAREST = "SELECT id, section, embedding FROM docs ORDER BY embedding <-> %s LIMIT 5";
    static final Float[] QUERY = {0.3f, 0.1f, 0.7f, 0.5f};

    static void same(String what, Object found, Object expected) {
        if (!found.equals(expected)) {
            throw new AssertionError(what + ": " + found + ", not " + expected);
        }
        System.out.println("ok JDBC: " + what);
    }

    static List<Long> keys(ResultSet rows) throws SQLException {
        List<Long> found = new ArrayList<>();
        while (rows.next()) {
            found.add(rows.getLong("id"));
        }
        return found;
    }

    public static void main(String[] arguments) throws Exception {
        URI address = URI.create(arguments[0]);
        String[] user = address.getUserInfo().split(":");
        String url = "jdbc:postgresql://" + address.getHost() + ":" + address.getPort() + address.getPath();
        List<Long> expected = new ArrayList<>();
        for (String key : arguments[1].split(",")) {
            expected.add(Long.valueOf(key));
        }
        try (Connection connection = DriverManager.getConnection(url, user[0], user[1])) {
            same("isValid", connection.isValid(5), true);
            try (Statement statement = connection.createStatement();
                    ResultSet rows = statement.executeQuery(String.format(NEAREST, "'[0.3,0.1,0.7,0.5]'"))) {
                same("text", keys(rows), expected);
            }
            // From the fifth on it is a named statement of the server with binary results.
            try (PreparedStatement statement = connection.prepareStatement(String.format(NEAREST, "?"))) {
                for (int round = 0; round < 8; round++) {
                    Array array = connection.createArrayOf("float4", QUERY);
                    statement.setArray(1, array);
                    try (ResultSet rows = statement.executeQuery()) {
                        same("prepared, array, round " + round, keys(rows), expected);
                    }
                }
            }
            try (PreparedStatement statement = connection.prepareStatement("SELECT id, embedding FROM docs WHERE id = ANY (?) AND views >= ? ORDER BY id")) {
                statement.setArray(1, connection.createArrayOf("int8", new Long[] {9L, 3L, 5L}));
                statement.setInt(2, 0);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    same("= ANY", rows.getLong(1), 3L);
                    same("an array that is read", ((Float[]) rows.getArray(2).getArray()).length, 4);
                }
            }
            connection.setAutoCommit(false);
            connection.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
            try (Statement statement = connection.createStatement()) {
                statement.setFetchSize(2);
                try (ResultSet rows = statement.executeQuery(String.format(NEAREST, "'[0.3,0.1,0.7,0.5]'"))) {
                    same("a cursor of two rows at a time", keys(rows), expected);
                }
            }
            connection.commit();
            connection.setAutoCommit(true);
            try (Statement statement = connection.createStatement()) {
                statement.executeQuery("SELECT id FROM docs d JOIN docs e USING (id)");
                throw new AssertionError("a join was taken");
            } catch (SQLException error) {
                same("an error with its code", error.getSQLState(), "0A000");
            }
            DatabaseMetaData data = connection.getMetaData();
            List<String> tables = new ArrayList<>();
            try (ResultSet rows = data.getTables(null, "collections", "%", new String[] {"TABLE"})) {
                while (rows.next()) {
                    tables.add(rows.getString("TABLE_NAME"));
                }
            }
            same("getTables", tables.contains("docs") && tables.contains("notes"), true);
            List<String> columns = new ArrayList<>();
            try (ResultSet rows = data.getColumns(null, "collections", "docs", "%")) {
                while (rows.next()) {
                    columns.add(rows.getString("COLUMN_NAME") + " " + rows.getString("TYPE_NAME"));
                }
            }
            same("getColumns", columns.contains("id int8") && columns.contains("embedding _float4"), true);
            try (ResultSet rows = data.getSchemas()) {
                same("getSchemas", rows.next(), true);
            }
        }
    }
}
